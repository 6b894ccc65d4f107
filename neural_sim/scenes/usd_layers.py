"""The two USD text layers of a NuRec archive, as 3dgrut's exporter lays them out."""

from collections.abc import Sequence

from jaxtyping import Float
from numpy import ndarray

_DEFAULT_LAYER = """#usda 1.0
(
    defaultPrim = "World"
    metersPerUnit = 1
    upAxis = "Z"
)

def Xform "World"
{
    over "gauss" (
        prepend references = @./gauss.usda@</World/gauss>
    )
    {
    }
}
"""

_GAUSS_LAYER = """#usda 1.0
(
    defaultPrim = "World"
    metersPerUnit = 1
    upAxis = "Z"
)

def Xform "World"
{
    def Volume "gauss"
    {
        float3[] extent = [%(low)s, %(high)s]
        rel field:density = </World/gauss/density_field>
        rel field:emissiveColor = </World/gauss/emissive_color_field>
        custom float3 omni:nurec:crop:maxBounds = %(high)s
        custom float3 omni:nurec:crop:minBounds = %(low)s
        custom bool omni:nurec:isNuRecVolume = 1
        custom float3 omni:nurec:offset = (0, 0, 0)
        custom bool omni:nurec:useProxyTransform = 0
        custom rel proxy
        matrix4d xformOp:transform = ( (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1) )
        uniform token[] xformOpOrder = ["xformOp:transform"]

        def OmniNuRecFieldAsset "density_field"
        {
            custom token fieldDataType = "float"
            custom token fieldName = "density"
            custom token fieldRole = "density"
            custom asset filePath = @./%(volume)s@
        }

        def OmniNuRecFieldAsset "emissive_color_field"
        {
            custom token fieldDataType = "float3"
            custom token fieldName = "emissiveColor"
            custom token fieldRole = "emissiveColor"
            custom asset filePath = @./%(volume)s@
            custom float4 omni:nurec:ccmB = (0, 0, 1, 0)
            custom float4 omni:nurec:ccmG = (0, 1, 0, 0)
            custom float4 omni:nurec:ccmR = (1, 0, 0, 0)
        }
    }
}
"""


def default_layer() -> bytes:
    """`default.usda`: the root layer, z up, that references the volume."""
    return _DEFAULT_LAYER.encode()


def gauss_layer(low_m: Float[ndarray, "3"], high_m: Float[ndarray, "3"], volume_name: str) -> bytes:
    """`gauss.usda`: the volume with bounds `low_m`..`high_m` (m) and its payload `volume_name`.

    The transform is the identity: readers disagree about the order of its elements.
    """
    return (_GAUSS_LAYER % {"low": _tuple(low_m), "high": _tuple(high_m), "volume": volume_name}).encode()


def _tuple(values: Sequence[float] | ndarray) -> str:
    return "(" + ", ".join(f"{float(value):.9g}" for value in values) + ")"
