"""XML that may be an attack: NVIDIA's signed manifests, opened only in the one shape that NVIDIA signs.

`open_signed`, in this order:

1. the document is UTF-8 without a document type, entities, comments or processing instructions, and is never
   allowed to name another resource;
2. its signature is the last child of the root and the only one anywhere; it covers the whole document, by
   one reference with the two known transforms, ECDSA P-384 and SHA-384. Nothing can be wrapped around it or
   hidden beside it;
3. the signature is that of the first certificate in it, checked with `signxml`; what is given back is what
   `signxml` returns as signed, never what was parsed before. Whether that certificate is anybody's, and in
   force, is the caller's to check.

White space inside tags, the order of attributes and line breaks in Base64 are not covered by any XML
signature: changing them changes nothing that is read.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from cryptography import x509

from cloister.enclave.x509 import MAX_CHAIN, load_certificate
from cloister.errors import InputError

__all__ = ["SWID", "open_signed"]

SWID: Final = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
"""The namespace of manifests, as a prefix of names."""
_MAX_BYTES: Final = 1 << 20
_DS: Final = "{http://www.w3.org/2000/09/xmldsig#}"
_C14N: Final = "http://www.w3.org/2006/12/xml-c14n11"
_ECDSA: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_SHAPE: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    ("SignedInfo", {}),
    ("CanonicalizationMethod", {"Algorithm": _C14N}),
    ("SignatureMethod", {"Algorithm": _ECDSA}),
    ("Reference", {"URI": ""}),
    ("Transforms", {}),
    ("Transform", {"Algorithm": _ENVELOPED}),
    ("Transform", {"Algorithm": _C14N}),
    ("DigestMethod", {"Algorithm": _SHA384}),
    ("DigestValue", {}),
    ("SignatureValue", {}),
    ("KeyInfo", {}),
    ("X509Data", {}),
)
"""The elements of the signature in document order, with their attributes; certificates follow."""


def open_signed(data: bytes) -> tuple[tuple[x509.Certificate, ...], Any]:
    """Return a manifest's certificates, the signer's first, and the root of what it signed.

    The root is an lxml element, or None where the signature does not hold.

    Raises:
        InputError: not a manifest of the one known shape, or lxml or signxml is not there.
    """
    root = _parse(data)  # 1
    chain = _certificates(_signature(root))  # 2
    return chain, _signed(data, chain[0])  # 3


def _parse(data: bytes) -> Any:
    etree, _ = _libraries()
    if len(data) > _MAX_BYTES:
        raise InputError(f"a manifest has at most {_MAX_BYTES >> 10} KiB", where="RIM")
    if b"<!" in data or b"<?" in data.removeprefix(b"<?xml "):
        raise InputError("a manifest has no document type, comments or instructions", where="RIM")
    try:
        data.decode("utf-8")
        root = etree.fromstring(data, _parser(etree))
    except (UnicodeDecodeError, ValueError, etree.LxmlError) as error:
        raise InputError(f"a manifest that is not XML ({type(error).__name__})", where="RIM") from None
    if any(not isinstance(each.tag, str) for each in root.iter()):
        raise InputError("a manifest has more than elements and text", where="RIM")
    return root


def _parser(etree: Any) -> Any:
    return etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        recover=False,
    )


def _signature(root: Any) -> Any:
    """Return the signature: the last child of the root, the only one, and of the known shape."""
    everywhere = [each for each in root.iter() if each.tag.startswith(_DS)]
    if root.tag != SWID + "SoftwareIdentity" or not len(root) or root[-1].tag != _DS + "Signature":
        raise InputError("a manifest is a software identity with its signature at its end", where="RIM")
    signature = root[-1]
    if list(signature.iter()) != everywhere:
        raise InputError("a manifest has parts of a signature in another place", where="RIM")
    if any(len(each) for each in everywhere if each.tag == _DS + "X509Certificate"):
        raise InputError("a manifest's certificate has elements in it", where="RIM")
    inner = [(each.tag.removeprefix(_DS), dict(each.attrib)) for each in everywhere[1:]]
    certificates = len(inner) - len(_SHAPE)
    wanted = [*_SHAPE, *[("X509Certificate", {})] * max(certificates, 0)]
    if inner != wanted or dict(signature.attrib) or not 2 <= certificates <= MAX_CHAIN:
        raise InputError("a manifest's signature is of another form than NVIDIA's", where="RIM")
    _nested(signature)
    return signature


def _nested(signature: Any) -> None:
    """Check who is whose child; with the order of all elements that leaves one tree."""
    children = {
        "Signature": ("SignedInfo", "SignatureValue", "KeyInfo"),
        "SignedInfo": ("CanonicalizationMethod", "SignatureMethod", "Reference"),
        "Reference": ("Transforms", "DigestMethod", "DigestValue"),
        "Transforms": ("Transform", "Transform"),
        "KeyInfo": ("X509Data",),
    }
    for each in signature.iter():
        found = tuple(child.tag.removeprefix(_DS) for child in each)
        name = each.tag.removeprefix(_DS)
        if name != "X509Data" and found != children.get(name, ()):
            raise InputError("a manifest's signature is of another form than NVIDIA's", where="RIM")


def _certificates(signature: Any) -> tuple[x509.Certificate, ...]:
    found = []
    for each in signature.iter(_DS + "X509Certificate"):
        try:
            der = base64.b64decode("".join((each.text or "").split()), validate=True)
        except (ValueError, binascii.Error):
            raise InputError("a manifest's certificate is not Base64", where="RIM") from None
        found.append(load_certificate(der, "RIM"))
    return tuple(found)


def _signed(data: bytes, signer: x509.Certificate) -> Any:
    """Return the root of what is signed, or None where the signature does not hold."""
    etree, signxml = _libraries()
    configuration = signxml.SignatureConfiguration(
        location="./",
        expect_references=1,
        signature_methods=frozenset({signxml.SignatureMethod.ECDSA_SHA384}),
        digest_algorithms=frozenset({signxml.DigestAlgorithm.SHA384}),
        verification_time=signer.not_valid_before_utc,  # when it is in force is the chain's matter
    )
    try:
        checked = signxml.XMLVerifier().verify(
            data,
            x509_cert=signer,
            parser=_parser(etree),
            validate_schema=False,  # its one shape was checked
            expect_config=configuration,
        )
    except (signxml.exceptions.SignXMLException, ValueError, etree.LxmlError):
        return None
    return checked.signed_xml


def _libraries() -> tuple[Any, Any]:
    try:
        import signxml
        from lxml import etree
    except ImportError:
        raise InputError("manifests need lxml and signxml", fix="Install cloister[enclave]") from None
    return etree, signxml
