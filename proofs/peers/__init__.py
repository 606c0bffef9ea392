"""Programs that run other drift detectors on the streams of the proof `drift-peers`.

Each runs as a script in a virtual environment of its own, without this project: ``python PROGRAM INDEX OUT``. `INDEX`
is what `proofs.peer_streams.write_streams` wrote; `OUT` is a JSON object, see `streams.Writer`.
"""
