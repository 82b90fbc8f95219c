{{ stem_demand_peaks('day') }}
