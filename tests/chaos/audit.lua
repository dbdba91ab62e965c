#!lua flags=no-writes
-- What must hold at every moment, looked at in one: each job is in the one place that its status
-- names, in no other, and not twice. Returns what does not hold.
local rq = ARGV[1]
local wrong = {}
local holders = {queued = ':queue:', started = ':wip:', finished = ':finished:', failed = ':failed:',
  stopped = ':failed:', canceled = ':canceled:'}

local function count(kind, queue, id, execution)
  local key = rq .. kind .. queue
  if kind == ':queue:' then return #redis.call('LPOS', key, id, 'COUNT', 0) end
  local member = kind == ':wip:' and id .. ':' .. execution or id
  return redis.call('ZSCORE', key, member) and 1 or 0
end

local function audit(id)
  local job = redis.call('HMGET', rq .. ':job:' .. id, 'status', 'origin', 'dfl_execution', 'dfl_ending')
  local status, queue = job[1], job[2]
  local home = status and holders[status]
  if not home or not queue then
    wrong[#wrong + 1] = id .. ' has the status ' .. tostring(status)
    return
  end
  for _, kind in ipairs({':queue:', ':wip:', ':finished:', ':failed:', ':canceled:'}) do
    local found = count(kind, queue, id, job[3] or '')
    if found ~= (kind == home and 1 or 0) then
      wrong[#wrong + 1] = id .. ' is ' .. status .. ', and ' .. found .. ' times in ' .. kind .. queue
    end
  end
  local has_ended = status ~= 'queued' and status ~= 'started'
  if has_ended and not job[4] then wrong[#wrong + 1] = id .. ' has ended without a word' end
end

local prefix = rq .. ':job:'
for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do audit(string.sub(key, #prefix + 1)) end
return wrong
