"""Config fields, their validation, and the command line. Imports no JAX."""
