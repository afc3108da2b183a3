"""Shared problems, backends and the cross-framework parity of their gradients."""
