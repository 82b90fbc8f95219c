{{ stem_battery('month') }}
