{{ stem_needs_all_tests() }}
{{ stem_battery('month') }}
