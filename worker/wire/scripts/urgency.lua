-- From which queue the next job comes: docs/decisions/0014.
-- The most urgent one that holds any. But a queue that was passed over for long is overdue, and of
-- every so many places overdue queues get one, in turn.
local urgency = {}
local open = {} -- queues that hold jobs, as far as is known, the most urgent first
local bases = {} -- the queue of `args.queues` to which each belongs
local overdue = {}
local num_places = false -- given while any was overdue
local places_key = dfl .. ':places:' .. args.queues[1]

local function passed_key(queue) return dfl .. ':passed:' .. queue end

local function find_overdue()
  if args.overdue_s == 0 or #args.queues < 2 then return end
  local keys = {}
  for index = 2, #args.queues do keys[index - 1] = passed_key(args.queues[index]) end
  for index, since in ipairs(redis.call('MGET', unpack(keys))) do
    if since and now - tonumber(since) > args.overdue_s then
      overdue[#overdue + 1] = args.queues[index + 1]
    end
  end
  if #overdue > 0 then num_places = tonumber(redis.call('GET', places_key) or 0) end
end

-- `queues` are those of `args.queues`, each after the special ones that belong to it.
function urgency.open(queues)
  local base = #args.queues
  for index = #queues, 1, -1 do
    if queues[index] == args.queues[base - 1] then base = base - 1 end
    open[index], bases[queues[index]] = queues[index], args.queues[base]
  end
  find_overdue()
end

function urgency.base_of(queue) return bases[queue] end

local function pop(index)
  local queue = open[index]
  local id = redis.call('LPOP', rq .. ':queue:' .. queue)
  if id then return id, queue end
  table.remove(open, index)
end

-- Whose turn it is among the overdue, but for the queue that is served without any share.
local function next_overdue()
  while open[1] and redis.call('EXISTS', rq .. ':queue:' .. open[1]) == 0 do
    table.remove(open, 1)
  end
  local turn = num_places / args.overdue_every
  for index = turn, turn + #overdue - 1 do
    local base = overdue[index % #overdue + 1]
    if base ~= bases[open[1]] then return base end
  end
end

local function pop_overdue()
  local base = next_overdue()
  for index = #open, 1, -1 do
    local id, queue
    if bases[open[index]] == base then id, queue = pop(index) end
    if id then return id, queue end
  end
end

-- Take the next job off its queue: its id and the queue, or nothing.
function urgency.next_job()
  if num_places then
    num_places = num_places + 1
    if num_places % args.overdue_every == 0 then
      local id, queue = pop_overdue()
      if id then return id, queue end
    end
  end
  while #open > 0 do
    local id, queue = pop(1)
    if id then return id, queue end
  end
end

-- Note since when queues have been passed over, for those who come next.
function urgency.note_passed_over()
  local waits, served = {}, {}
  for _, queue in ipairs(open) do
    if redis.call('EXISTS', rq .. ':queue:' .. queue) == 1 then waits[bases[queue]] = true end
  end
  for index = 2, #args.queues do
    local queue = args.queues[index]
    if waits[queue] then
      redis.call('SET', passed_key(queue), now, 'NX', 'EX', 86400)
    else
      served[#served + 1] = passed_key(queue)
    end
  end
  if #served > 0 then redis.call('DEL', unpack(served)) end
  if num_places then redis.call('SET', places_key, num_places % 1e9, 'EX', 3600) end
end
