"""The benchmark: drain, open-loop latency and cost of the scorer, the passthrough and a per-event loop.

The load generator, the arrival consumer and the per-event loop are separate programs under `outside/`, which
import nothing of the product. Here lives what starts them, what they are compared by, and how it is shown.
"""
