"""The Fraud Detection Handbook's transactions as input of this product. The data set itself is not shipped."""
