"""What autograd holds: the storages after a forward, whose they are, who shares them; on real or on fake tensors.

Serves conversion and reporting, and knows neither: which modules are activations is a question to its callers.
"""
