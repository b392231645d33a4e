"""One trainer that does the work, and three small ones that say which loss."""
