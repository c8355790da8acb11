"""The parts of which models are built: they hold weights and call ops; state is an argument."""
