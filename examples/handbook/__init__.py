"""The Fraud Detection Handbook's transactions as input of this product. The repository does not contain the data."""
