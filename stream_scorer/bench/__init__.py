"""The benchmark: drain, open-loop latency and cost of the scorer beside the passthrough and a per-event loop.

What measures from outside (load, arrivals) and the per-event loop are programs of their own under `outside/`, which
import nothing of the product. Here lives what starts them, what they are compared by, and how it is shown.
"""
