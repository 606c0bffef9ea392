"""Consumers, producers, transactions and topics: the only package that imports confluent_kafka."""
