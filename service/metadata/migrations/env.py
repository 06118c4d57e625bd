"""Alembic's entry: the connection, and its transaction, are the caller's (`service.metadata.migrate`)."""

from alembic import context

from service.metadata.schema import metadata

# SQLite can take back DDL; Alembic assumes that it cannot, because the driver's default gets in
# the way (`service.metadata.engine`).
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
