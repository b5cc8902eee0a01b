"""Refusals of S3 servers and failed requests, as one-line errors.

Every sentence names the object, the cause and the remedy, with the server's error code in brackets.
"""

import os
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from mtil.errors import NotFoundError, RefusedError, StorageError

StorageOperation = Literal["read", "write", "create", "delete", "list"]
"""The operation that failed."""

MAX_CLOCK_SKEW_S = 15 * 60
"""Largest difference of clocks accepted by S3, in seconds."""
_ACTIONS = {
    "read": "s3:GetObject and s3:ListBucket",
    "write": "s3:PutObject",
    "create": "s3:PutObject",
    "delete": "s3:DeleteObject",
    "list": "s3:ListBucket",
}
_EXPIRED = {
    "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken",
    "InvalidTokenId", "RequestExpired",
}  # fmt: skip
_UNKNOWN_KEY = {"InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException",
                "NotSignedUp", "InvalidSecurity"}  # fmt: skip
_WRONG_SECRET = {"SignatureDoesNotMatch", "AuthFailure"}
_REGION = {
    "PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "302", "307", "308",
    "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "InvalidRegion",
    "AuthorizationQueryParametersError", "IncorrectEndpoint",
}  # fmt: skip
_REFUSED = {
    "AccessDenied", "AccessDeniedException", "403", "401", "Forbidden", "Unauthorized",
    "UnauthorizedAccess", "AllAccessDisabled", "MissingSecurityHeader", "InvalidPayer",
    "MissingAuthenticationToken", "UnauthorizedOperation",
}  # fmt: skip
_BUSY = {
    "SlowDown", "503", "502", "504", "500", "429", "ServiceUnavailable", "InternalError",
    "TooManyRequests", "TooManyRequestsException", "Throttling", "ThrottlingException",
    "RequestLimitExceeded", "BandwidthLimitExceeded", "RequestTimeout", "Busy", "ServerBusy",
    "XMinioServerNotInitialized", "OperationAborted", "SlowDownRead", "SlowDownWrite",
}  # fmt: skip
_PAGES = {"200", "400", "401", "403", "405", "407", "500", "501"}
"""Error codes of possible web pages. S3 servers never send web pages."""
_FULL = {
    "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "InsufficientCapacity",
    "507", "InsufficientStorage", "StorageFull", "ServiceQuotaExceededException", "LimitExceeded",
    "NoSpaceLeft",
}  # fmt: skip
_UNSUPPORTED = {"NotImplemented", "501", "MethodNotAllowed", "405", "UnsupportedOperation",
              "NotSupported"}  # fmt: skip
_CHECKSUMS = {"MissingContentMD5", "InvalidDigest", "BadDigest", "XAmzContentSHA256Mismatch",
              "XAmzContentChecksumMismatch", "ChecksumMismatch"}  # fmt: skip
_LOCKED = re.compile(r"object.?lock|\bWORM\b|retention|legal.?hold|immutab", re.IGNORECASE)
_PAYER = re.compile(r"requester.?pays", re.IGNORECASE)
_KEY_SERVICE = re.compile(r"\bkms\b|kms:", re.IGNORECASE)
_CONDITION = re.compile(r"if-none-match|conditional|precondition", re.IGNORECASE)
_EXPECTED_REGION = re.compile(r"expecting '([a-z0-9-]+)'")


class S3Errors:
    """Turns botocore's errors into mtil's errors."""

    def __init__(self, bucket: str, key: str, doing: StorageOperation) -> None:
        self.bucket, self.key, self.doing = bucket, key, doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, StorageError):
            return
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        if isinstance(error, ClientError):
            raise self._explain_answer(error.response) from error
        # botocore raises ValueError for an invalid endpoint URL.
        if isinstance(error, BotoCoreError | Boto3Error | ResponseParserError | ValueError):
            raise self._explain_no_answer(error) from error

    @property
    def _where(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def _explain_answer(self, answer: Mapping[str, Any]) -> StorageError:
        details = answer.get("Error", {})
        code, message = str(details.get("Code") or "unknown"), str(details.get("Message") or "")
        if code in ("NoSuchKey", "404"):
            return NotFoundError(f"{self._where} does not exist.")
        if code == "NoSuchBucket":
            return StorageError(f"Bucket {self.bucket!r} does not exist; make it first.")
        if code in ("InvalidBucketName", "InvalidBucketState"):
            return StorageError(
                f"No bucket can be called {self.bucket!r} ({code}); correct the s3:// location."
            )
        content = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("content-type", "")
        if "html" in content and code in _PAGES:
            return StorageError(
                f"{self._where} failed with {code}: the answer is not from an S3 server; check "
                "AWS_ENDPOINT_URL and proxies."
            )
        refusal = self._explain_refusal(answer, code, message)
        if refusal is not None:
            return RefusedError(refusal)
        return StorageError(self._explain_failure(answer, code, message))

    def _explain_refusal(self, answer: Mapping[str, Any], code: str, message: str) -> str | None:
        """Return the sentence for a refusal of access, or None."""
        # HEAD answers have no body and give 403 for a wrong clock too, which only the clocks show.
        lead_s = _lead_s(answer)
        refused = {*_REFUSED, *_WRONG_SECRET, *_UNKNOWN_KEY}
        is_late = abs(lead_s) > MAX_CLOCK_SKEW_S
        if code == "RequestTimeTooSkewed" or (code in refused | _EXPIRED and is_late):
            apart = f"{abs(lead_s) / 60:.0f} minutes" if is_late else "too far"
            return (
                f"This machine's clock must be within {MAX_CLOCK_SKEW_S / 60:.0f} minutes of the "
                f"storage's, but they are {apart} apart and {self._where} is refused ({code}); "
                "set the clock."
            )
        access = f"Access to {self._where} is refused"
        if code in _EXPIRED:
            return (
                f"{access}, because the AWS credentials have expired ({code}); log in again, or "
                "set new ones in the environment."
            )
        if code in _UNKNOWN_KEY:
            return (
                f"{access}, because {_endpoint()} does not know the access key ({code}); check the "
                "AWS credentials in the environment and AWS_ENDPOINT_URL."
            )
        if code in _WRONG_SECRET:
            return (
                f"{access}, because the secret key does not belong to the access key ({code}); "
                "check the AWS credentials in the environment."
            )
        if code.startswith("KMS.") or (code in _REFUSED and _KEY_SERVICE.search(message)):
            return (
                f"{access}, because the key that encrypts the bucket cannot be used ({code}); "
                "enable the key, or ask for the right to use it (kms:Decrypt, kms:GenerateDataKey)."
            )
        if code in _REFUSED and _PAYER.search(message):
            return (
                f"{access}, because the bucket charges its readers, requester pays ({code}); copy "
                "the data to your own bucket."
            )
        if code in (*_REFUSED, "InvalidRequest", "ObjectLocked") and (
            code == "ObjectLocked" or _LOCKED.search(message)
        ):
            return (
                f"{access}, because objects of the bucket are locked ({code}); mtil replaces and "
                "deletes its files, so choose a bucket without object lock."
            )
        if code in _REFUSED:
            return (
                f"{access} ({code}); check the AWS credentials in the environment, and their "
                f"right {_ACTIONS[self.doing]}."
            )
        return None

    def _explain_failure(self, answer: Mapping[str, Any], code: str, message: str) -> str:
        """Return the sentence for a failure after access was granted."""
        start = f"{self._where} failed with {code}"
        if code in _REGION or (code == "400" and _region(answer)):
            region = _region(answer)
            place = f"in region {region}" if region else "in another region"
            remedy = f"set AWS_DEFAULT_REGION={region}" if region else (
                "set AWS_DEFAULT_REGION to the bucket's region, and AWS_ENDPOINT_URL to its server"
            )  # fmt: skip
            return f"{start}, because bucket {self.bucket!r} is {place}; {remedy}."
        if self.doing == "create" and (
            code in {*_UNSUPPORTED, "InvalidArgument"} or _CONDITION.search(message)
        ):
            return (
                f"{start}, because {_endpoint()} cannot create an object only if the name is free "
                "(`If-None-Match` on writes), which mtil needs; update the server, or choose "
                "another storage."
            )
        for codes, ending in _FAILURES:
            if code in codes:
                return f"{start}{ending.format(endpoint=_endpoint(), doing=self.doing)}."
        text = f": {' '.join(message.split()).rstrip('.')[:200]}" if message else ""
        return f"{start}{text}; see the manual of the server at {_endpoint()}."

    def _explain_no_answer(self, error: Exception) -> StorageError:
        """Return the error for a request without an answer."""
        text = " ".join(str(error).split()).rstrip(".")
        kinds = {kind.__name__ for kind in type(error).__mro__}
        for names, refusal in _NO_CREDENTIALS:
            if kinds & names:
                return RefusedError(refusal.format(where=self._where, text=text))
        if kinds & {"ParamValidationError", "UnsupportedS3ArnError"}:
            return StorageError(
                f"No bucket can be called {self.bucket!r} ({text}); correct the s3:// location."
            )
        remedy = next((hint for names, hint in _OUT_OF_REACH if kinds & names), "check the network")
        return StorageError(
            f"Bucket {self.bucket!r} is out of reach at {_endpoint()}: {text}; {remedy}."
        )


_FAILURES: tuple[tuple[set[str], str], ...] = (
    (
        _UNSUPPORTED,
        ", because {endpoint} does not know a request that mtil needs ({doing}); update the "
        "server, or choose another storage",
    ),
    (_BUSY, ": the server is busy or out of order; run the same command again later"),
    (_FULL, ": the storage is full or its quota is used up; free some space"),
    (
        _CHECKSUMS,
        ": the server expects another checksum, or the bytes changed on the way; check proxies "
        "and AWS_REQUEST_CHECKSUM_CALCULATION",
    ),
    ({"InvalidObjectState"}, ": the object is archived; restore the object first"),
    (
        {"KeyTooLongError", "KeyTooLong"},
        ": the name is too long for the server; choose a shorter location",
    ),
    (
        {"EntityTooLarge", "413"},
        ": the object is too large for the server; choose another storage",
    ),
    (
        {"400"},
        " and no reason: usually the credentials have expired, the region is wrong or the server "
        "speaks https; check the AWS variables of the environment",
    ),
)
"""Error codes, each with the end of the sentence after `... failed with CODE`."""

_NO_CREDENTIALS: tuple[tuple[set[str], str], ...] = (
    (
        {"NoCredentialsError", "NoAuthTokenError"},
        "There are no AWS credentials for {where}; set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    ),
    (
        {"PartialCredentialsError"},
        "The AWS credentials for {where} are incomplete ({text}); set both AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY.",
    ),
    (
        {"TokenRetrievalError", "SSOError", "CredentialRetrievalError", "MetadataRetrievalError",
         "RefreshWithMFAUnsupportedError", "LoginError"},
        "The AWS credentials for {where} cannot be fetched or have expired ({text}); log in "
        "again, such as by `aws sso login`.",
    ),
    (
        {"ProfileNotFound", "ConfigNotFound", "ConfigParseError", "InvalidConfigError"},
        "The AWS configuration for {where} cannot be used ({text}); check AWS_PROFILE and "
        "~/.aws/config.",
    ),
)  # fmt: skip
"""Errors of botocore by name, because some versions lack some classes."""

_OUT_OF_REACH: tuple[tuple[set[str], str], ...] = (
    ({"SSLError"}, "check that the endpoint speaks https, and AWS_CA_BUNDLE"),
    ({"ProxyConnectionError"}, "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"),
    ({"NoRegionError", "InvalidRegionError"}, "set AWS_DEFAULT_REGION"),
    (
        {"ResponseParserError"},
        "the answer is not from an S3 server; check AWS_ENDPOINT_URL and proxies",
    ),
    ({"ConnectTimeoutError", "ReadTimeoutError"}, "check the network and its speed"),
    ({"EndpointConnectionError", "ConnectionError"}, "check AWS_ENDPOINT_URL and the network"),
    ({"ValueError"}, "correct AWS_ENDPOINT_URL, such as http://HOST:PORT"),
)


def _endpoint() -> str:
    return (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or "the default endpoint"
    )


def _region(answer: Mapping[str, Any]) -> str | None:
    """Return the bucket's region named in an answer, or None."""
    details = answer.get("Error", {})
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    named = details.get("Region") or headers.get("x-amz-bucket-region")
    if named:
        return str(named)
    match = _EXPECTED_REGION.search(str(details.get("Message") or ""))
    return match[1] if match else None


def _lead_s(answer: Mapping[str, Any]) -> float:
    """Return the seconds by which this machine's clock is ahead of the server's."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0
    except ValueError:
        return 0.0
