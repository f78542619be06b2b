"""A bundle: a folder of engines that ``manifest.json`` describes, and that may be signed.

reader         opens a bundle whose files have the digests that its manifest states
manifest       the manifest; quantization: of its quantized graphs; fields: types of names and texts in it
checked        the files as they were checked, whatever happens to the folder later
golden         tiles with expected outputs
preprocessing  from pixels to the network's input
targets        the names of what a bundle is built for
signing        signatures, policies, and the versions that a device accepted
"""

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # as OpenSSF Model Signing names it
