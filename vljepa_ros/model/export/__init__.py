"""From torch to a bundle: graphs, their storage, their int8 and fp8 variants, public weights."""
