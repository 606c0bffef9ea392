"""Consumers, transactions, offsets, topics: the only package that imports confluent_kafka and knows librdkafka."""
