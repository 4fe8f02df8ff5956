CREATE TABLE "egress_hosts" (
	"instance_id" uuid NOT NULL,
	"host" text NOT NULL,
	"port" integer NOT NULL,
	"organization_id" uuid NOT NULL,
	"verdict" text NOT NULL,
	"reason" text,
	"connections" bigint NOT NULL,
	"sent_bytes" bigint DEFAULT 0 NOT NULL,
	"received_bytes" bigint DEFAULT 0 NOT NULL,
	"first_seen_at" timestamp with time zone DEFAULT now() NOT NULL,
	"last_seen_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "egress_hosts_instance_id_host_port_pk" PRIMARY KEY("instance_id","host","port")
);
--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "egress" jsonb;--> statement-breakpoint
ALTER TABLE "organizations" ADD COLUMN "egress" jsonb;--> statement-breakpoint
CREATE INDEX "egress_hosts_last_seen" ON "egress_hosts" USING btree ("last_seen_at");--> statement-breakpoint
CREATE INDEX "egress_hosts_organization" ON "egress_hosts" USING btree ("organization_id");