"""The only home of the hosts' private names: one module per host, imported by the framework halves on use."""
