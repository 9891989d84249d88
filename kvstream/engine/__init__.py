"""The cache, replay and decoding; under them one backend per kind of device."""
