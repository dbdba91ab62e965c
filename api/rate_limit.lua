-- A token bucket: KEYS[1] its hash, ARGV[1] its size, ARGV[2] the seconds it takes to fill, ARGV[3]
-- what is to be taken. Nothing is taken where that is not there; more than the size is the size.
-- Returns {1 or 0: may pass, left, milliseconds until it is full, milliseconds to wait}.
local size, window_ms = tonumber(ARGV[1]), tonumber(ARGV[2]) * 1000
local cost = math.min(tonumber(ARGV[3]), size)
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
local bucket = redis.call('HMGET', KEYS[1], 'left', 'at_ms')
local left, at_ms = tonumber(bucket[1]) or size, tonumber(bucket[2]) or now_ms
left = math.min(size, left + math.max(0, now_ms - at_ms) * size / window_ms)
local passes = left >= cost
if passes then left = left - cost end
redis.call('HSET', KEYS[1], 'left', string.format('%.6f', left), 'at_ms', string.format('%.3f', now_ms))
redis.call('PEXPIRE', KEYS[1], math.ceil(window_ms))
local wait_ms = passes and 0 or (cost - left) * window_ms / size
return {passes and 1 or 0, math.floor(left), math.ceil((size - left) * window_ms / size), math.ceil(wait_ms)}
