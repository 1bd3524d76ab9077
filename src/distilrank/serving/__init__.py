"""HTTP service that scores products with the registry's champion, and reloads it when it changes."""
