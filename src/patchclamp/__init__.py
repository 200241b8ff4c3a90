"""patchclamp"""
