"""Other video autoencoders behind one interface, for whole clips and block by block.

    peer = PEERS["cogvideox"]
    model = peer.build(full=True)           # random weights; or peer.build(weights="folder/")
    model.use(DIRECT)                       # or the name of one of peer.modes
    latents = model.encode(video)           # (1, 3, T, H, W) in [-1, 1] -> the unscaled mean
    video = model.decode(latents, frames)   # -> (1, 3, T, H, W)

`PEERS` are models of diffusers; `CHECKOUTS` need a local checkout of their authors' code.
"""

from peers.checkouts import CHECKOUTS, Checkout, CheckoutPeer
from peers.model import DIRECT, Mode, PeerModel
from peers.registry import PEERS, Peer

__all__ = ["CHECKOUTS", "DIRECT", "PEERS", "Checkout", "CheckoutPeer", "Mode", "Peer", "PeerModel"]
