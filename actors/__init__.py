"""Network functions ready to use, each written against the public surface of actornet alone."""
