"""spiketrain: high-performance spiking neural networks by back-propagation."""
