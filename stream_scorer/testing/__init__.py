"""For tests of one's own pipeline: a broker and marked rows in memory, and processes that die where they are told to.

They keep the promises of Kafka and Redis that the processor rests on, and nothing else; what they must have in common
with the real ones is held to both in the contract tests. Nothing of the product imports this package.
"""
