"""Styles in QGIS's own format (QML), for the rasters and polygons of a scene. Pure text."""

from __future__ import annotations

from misgnet_runtime.raster.writer import CHANGED, CLASSES, NODATA, UNCHANGED

# As QGIS writes it; nothing loads the address.
_HEAD = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_RED = 255, 0, 0
_RAMP = (  # probability, colour, opacity (0 to 255)
    (0.0, "#ffffb2", 0), (0.1, "#ffffb2", 40), (0.25, "#fecc5c", 160), (0.5, "#fd8d3c", 220), (0.75, "#f03b20", 255),
    (1.0, "#bd0026", 255),
)  # fmt: skip


def change_raster() -> str:
    """Returns the style of a change raster: changed pixels in red, the others transparent, with the classes' names."""
    colour = "#{:02x}{:02x}{:02x}".format(*_RED)
    entries = "\n".join(
        f'        <paletteEntry value="{value}" color="{shown}" alpha="{opacity}" label="{CLASSES[value]}"/>'
        for value, shown, opacity in ((UNCHANGED, "#000000", 0), (CHANGED, colour, 255), (NODATA, "#808080", 0))
    )
    return _raster(
        '    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">\n'
        "      <rasterTransparency/>\n"
        f"      <colorPalette>\n{entries}\n      </colorPalette>\n"
        "    </rasterrenderer>\n"
    )


def probability_raster() -> str:
    """Returns the style of a probability raster: from transparent over yellow to red, interpolated."""
    items = "\n".join(
        f'          <item value="{value:g}" color="{colour}" alpha="{opacity}" label="{value:g}"/>'
        for value, colour, opacity in _RAMP
    )
    return _raster(
        '    <rasterrenderer type="singlebandpseudocolor" band="1" opacity="1" alphaBand="-1" nodataColor=""'
        ' classificationMin="0" classificationMax="1">\n'
        "      <rasterTransparency/>\n"
        "      <minMaxOrigin><limits>None</limits><extent>WholeRaster</extent>"
        "<statAccuracy>Estimated</statAccuracy></minMaxOrigin>\n"
        "      <rastershader>\n"
        '        <colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" minimumValue="0"'
        ' maximumValue="1">\n'
        f"{items}\n"
        "        </colorrampshader>\n"
        "      </rastershader>\n"
        "    </rasterrenderer>\n"
    )


def change_areas() -> str:
    """Returns the style of polygons: a red outline, and a translucent fill that shows the image below."""
    red = ",".join(map(str, _RED))
    properties = {
        "color": f"{red},64", "style": "solid", "outline_color": f"{red},255", "outline_style": "solid",
        "outline_width": "0.5", "outline_width_unit": "MM", "joinstyle": "miter",
    }  # fmt: skip
    # Versions before 3.22 read ``prop``.
    new = "".join(f'<Option name="{key}" type="QString" value="{value}"/>' for key, value in properties.items())
    old = "".join(f'<prop k="{key}" v="{value}"/>' for key, value in properties.items())
    return (
        f'{_HEAD}<qgis version="3.16" styleCategories="Symbology">\n'
        '  <renderer-v2 type="singleSymbol" symbollevels="0" enableorderby="0" forceraster="0">\n'
        "    <symbols>\n"
        '      <symbol type="fill" name="0" alpha="1" clip_to_extent="1" force_rhr="0">\n'
        f'        <layer class="SimpleFill" enabled="1" locked="0" pass="0">\n'
        f'          <Option type="Map">{new}</Option>\n          {old}\n'
        "        </layer>\n      </symbol>\n    </symbols>\n  </renderer-v2>\n"
        "  <blendMode>0</blendMode>\n  <layerGeometryType>2</layerGeometryType>\n</qgis>\n"
    )


def _raster(renderer: str) -> str:
    return (
        f'{_HEAD}<qgis version="3.16" styleCategories="Symbology">\n  <pipe>\n{renderer}  </pipe>\n'
        "  <blendMode>0</blendMode>\n</qgis>\n"
    )
