from latteclip.config.schema import SCHEMA, Schema


def test_every_key_of_the_schema_is_described():
    def walk(schema, where):
        for key, sub in schema.get("properties", {}).items():
            if "$ref" not in sub:
                assert "description" in sub, f"{where}.{key}"
                walk(sub, f"{where}.{key}")
        for key, sub in schema.get("$defs", {}).items():
            assert sub.get("additionalProperties") is False, key
            walk(sub, key)

    walk(Schema(SCHEMA).root, "config")
