"""Incidents of every kind on their topic, the conditions on topics that open them, and the webhook (ADR 0033).

What a version under test does is judged in `control`, drift in `monitor`. Both report here.
"""
