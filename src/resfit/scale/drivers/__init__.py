"""Who hands shards to workers: one small module an engine, none of them an engine of its own."""
