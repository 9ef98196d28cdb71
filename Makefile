# Everything a developer or a newcomer runs. `make run` and `make test` install what they lack.
