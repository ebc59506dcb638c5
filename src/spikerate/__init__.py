"""spikerate: deep spiking neural networks, trained for about the price of an ordinary network."""
from spikerate.neuron import IF, LIF
from spikerate.rules import BPTT, RateBP
