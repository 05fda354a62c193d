"""Room of the optional cloud-controller-manager. Nothing runs here yet.

It will be written against ``controlplane.client`` alone, as the layer contract in ``pyproject.toml`` already demands.
"""
