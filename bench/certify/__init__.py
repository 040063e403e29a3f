"""Certify a GPU: are our kernels right on it, and which decoder is fastest?"""
