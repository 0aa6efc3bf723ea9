"""The two programs: `server` and `client` have the options, `serving` and `looking` do the work."""
