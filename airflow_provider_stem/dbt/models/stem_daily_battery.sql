{{ stem_battery('day') }}
