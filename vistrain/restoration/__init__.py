"""Networks that restore images: super-resolution, denoising, deblurring. Pure torch, one file per paper."""

from vistrain.restoration.bicubic import BicubicEnlarger
from vistrain.restoration.dlgsanet import DLGSANet
from vistrain.restoration.dncnn import DnCNN
from vistrain.restoration.drct import DRCT
from vistrain.restoration.edsr import EDSR
from vistrain.restoration.hat import HAT
from vistrain.restoration.maxim import MAXIM
from vistrain.restoration.model import RestorationModel
from vistrain.restoration.nafnet import NAFNet, NAFNetLocal
from vistrain.restoration.restorer import Restorer
from vistrain.restoration.rgt import RGT
from vistrain.restoration.swinir import SwinIR

__all__ = [
    "DRCT",
    "EDSR",
    "HAT",
    "MAXIM",
    "RGT",
    "BicubicEnlarger",
    "DLGSANet",
    "DnCNN",
    "NAFNet",
    "NAFNetLocal",
    "RestorationModel",
    "Restorer",
    "SwinIR",
]
