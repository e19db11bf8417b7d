"""Show what differs, where a helper of these tests compares."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.producers.published")
