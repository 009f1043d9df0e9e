"""The soak: real datacenters and gateways under traffic, faults at random from a seed, invariants that never rest."""
