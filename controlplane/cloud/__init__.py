"""Room of the optional cloud-controller-manager (docs/architecture.md). Nothing runs here yet; it will be written against
``controlplane.client`` alone, as the layer contract in ``pyproject.toml`` already demands.
"""
