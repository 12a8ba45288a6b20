"""The schemas, as numbered files of SQL; `axonize_server.migrate` runs them."""
