"""Text-to-code pairs from the documented functions of packages."""

from moe.data.mining.functions import SUFFIXES as SUFFIXES
from moe.data.mining.licenses import ANY as ANY
from moe.data.mining.licenses import PERMISSIVE as PERMISSIVE
from moe.data.mining.mine import MineOptions as MineOptions
from moe.data.mining.mine import mine as mine
from moe.data.mining.mine import processes as processes
from moe.data.mining.trees import STDLIB as STDLIB
