"""What tests and proofs share: a broker, rows and logs in memory, failpoints, and small made-up data.

No test module imports another one. The in-memory broker and rows pass the same suites as Kafka and Redis
(`tests/contract`).
"""
