"""The HTTP service that scores with the registry's champion, and follows it when it changes."""
