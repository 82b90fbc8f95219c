{{ stem_demand_peaks('month') }}
