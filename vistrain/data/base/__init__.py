"""The ground of all data: the module, exact samplers, bad files, images, storage, shards."""
