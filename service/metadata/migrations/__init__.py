"""What made the schema, step by step; run by `service.metadata.migrate`."""
