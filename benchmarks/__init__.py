"""Measurements of steptape against its hosts and peers. No part of the package: run from the repository's root."""
